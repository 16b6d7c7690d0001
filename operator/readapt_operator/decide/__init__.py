"""``decide(Observed) -> Plan``: pure functions over one frozen value. No I/O, no phases."""
