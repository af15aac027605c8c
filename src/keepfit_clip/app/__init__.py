"""A page to try a model on: `service` asks the model, `views` writes HTML, `page` is the Gradio page around them."""
