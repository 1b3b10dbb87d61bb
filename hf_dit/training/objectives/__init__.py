"""Training objectives: what the network learns to predict, at which times, with which weight.

`make.py` knows them by name; `diffusion.py` holds `epsilon`, `sample` and `v_prediction`, `flow.py` the flow.
"""
