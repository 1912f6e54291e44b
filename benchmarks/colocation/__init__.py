"""Real-time and batch on one server: what each gets, under our policy and under the peers'. See docs/colocation.md.

    make bench-colocation       # a real vLLM with 8 slots
    make bench-colocation-sim   # the simulator: 8 slots over HTTP, and 256 slots and a day's load in virtual time

Modules: `comparison` (what is asked for), `traffic`, `shapes` and `trace` (what real-time asks), `realtime` (asks it,
over HTTP), `policies` (what batch may do), `fleet` and `batch_process` (batch, in processes of its own), `servers`
(what both run on), `arm` (one measurement), `look` and `look_cost` (batch's looks at the load, and what they cost),
`measures` (its figures), `report` and `plot` (table and pictures), `virtual` and `virtual_task` (the same
without sockets or clocks).
"""
