"""The schema of params.yaml, and changes to it from presets and command lines.

params = load_params(Path("params.yaml"))                           # tasks.settings.params
text = with_changes(text, {"alpha=0.3": {"alpha": 0.3}})            # tasks.settings.changes
"""
