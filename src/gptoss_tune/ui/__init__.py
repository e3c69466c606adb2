"""A page on this machine: the runs, a running one live, a recipe as a form, a chat.

``access`` says who may ask, ``pages`` draws, ``jobs`` runs what a click starts:

- ``runs/``: the list of runs, and one run with its curves while it trains.
- ``recipe/``: the form made from the JSON Schema; check, plan, preview, check-data, train.
- ``chat/``: a tuned model, loaded in a process of its own.
- ``server/``: all of it on one port of loopback.

Starlette with server-rendered pages was chosen, and a script of a few hundred lines without a
build. Gradio, Streamlit and NiceGUI were the alternatives. Each draws with its own widgets, which
show neither the report's curves nor a form of a hundred settings read from a schema. Gradio and
Streamlit bring pandas; Streamlit runs a script again at each click, and a page of NiceGUI is gone
with its web socket. And they put scripts into the page itself, which the policy of these pages
forbids, since texts of datasets and models stand in them.

Nothing here imports torch: what is heavy runs in processes that a click starts.
"""
