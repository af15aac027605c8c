"""A page to try a model on: `service` asks it, `page` is Gradio's, `guard` stands between that and the network."""
