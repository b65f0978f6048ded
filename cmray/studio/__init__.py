"""F4: a studio in the browser. Logic without gradio in most files; `page_*`, `app` and `serve` are the only ones that
import it."""
