"""A page to try a model on: `service` asks it, `handlers` what the page shows, `page` is Gradio's.

`guard` stands between that and the network, `uploads` forgets.
"""
