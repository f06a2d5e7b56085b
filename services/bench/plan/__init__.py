"""What a run measures. A plan is a YAML file; its cells follow from the plan alone.

    load(path) -> Plan      raises Invalid, with the line of each mistake
    shipped() -> names      the plans of this package, which `load` takes by name

A plan names stores, queries, rates, sizes, repeats, a seed, a time budget and every threshold that the report applies.
`stages(plan)` gives the cells. No room but this one knows the spelling of a plan.
"""
