"""F2: zero-shot editing with Algorithm 4: each task in its own file, the loop in `samplers`."""

from cmray.editing.base import EditingTask, Known, Levels, edited, editing_tasks

__all__ = ["EditingTask", "Known", "Levels", "edited", "editing_tasks"]
