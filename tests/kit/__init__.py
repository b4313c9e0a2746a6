"""The driving vocabulary of the tests: real processes, real servers, and proofs kept outside the product.

One noun a file; nothing here imports `engine` but what reads its stored protobuf:

    ledger.py     what was executed, as the executing code wrote it down
    gates.py      a handler blocks until the test says go
    process.py    operating-system processes that can be killed and frozen
    server.py     a nats-server on its own store
    proxy.py      a TCP proxy that understands NATS frames
    raw.py        the wire and the stores, seen without the product
    foreign.py    services that know nothing of us
    services.py   a service of the mesh that keeps the ledger
    flows.py      the workflows that scenarios run
    stage.py      all of it together, for one test
    agreement.py  client and store must say the same
    history.py    what everybody saw in a run full of faults, and whether it can be true
"""
