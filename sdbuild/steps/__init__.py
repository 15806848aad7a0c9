"""One module a step kind: `run(spec, inputs, out, context)`. Glue, no maths."""
