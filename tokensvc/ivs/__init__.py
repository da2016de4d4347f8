"""Everything that talks to Amazon IVS Real-Time, and nothing else does.

`gateway.py` is what the rest of the service sees: a Protocol and the values it answers with.
`boto.py` is that Protocol over boto3, `budgets.py` keeps our calls below IVS's rates, `faults.py`
turns botocore's errors into ours, `stages.py` remembers stage endpoints so that the mint need not
ask. No botocore class, and no botocore error, leaves this package.
"""
