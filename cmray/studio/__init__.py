"""F4: models in the browser. The logic of a tab knows no gradio; `page_*`, `widgets`, `app` and `serve` do."""
