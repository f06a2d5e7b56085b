"""What a run leaves: one folder, from which every number of the report can be computed again.

    plan.yaml           the plan, byte for byte
    run.json            seed, versions, settings with secrets masked, machine, target (`About`)
    journal.ndjson      one line for each event; a trial counts once its line is here, with the hashes of its files
    trials/N.json       one trial (`Trial`): its cell, its pace, its histograms, what the stores held afterwards
    samples/N.json.gz   every sample of it, by column (`Tables`)
    report.*            written from the files above

    Evidence.create(...), Evidence.open(folder)   raise Invalid for a folder that holds something else
    .add(trial, tables)                           called by the run after each trial; on disk when it returns
    .trials(), .tables(trial)                     read by the report

A trial is never changed. An interrupted run goes on with the trials that its journal lacks.
"""
