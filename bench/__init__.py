"""Benchmarks against what stands below us, in the same run and the same minute: `python -m bench`.

load.py       what is measured: calls finished in a time, and how long each took
child.py      each contender's client and servers are processes of their own
rpc.py        one unary call: bare nats-py, grpc.aio, ours
floor.py      a three-step workflow's messages, sent by bare nats-py without an engine
workflows.py  the same workflow by the engine
table.py      medians of interleaved rounds, as ratios
"""
