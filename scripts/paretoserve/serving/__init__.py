"""From step latencies to what users and operators see: ttft, tpot, rates.

Both modes carry the same kind of correction. `prefill_correction_scale` and
`decode_correction_scale` are the largest share of the time that prefill and decode work can be
kept busy; they multiply throughput, for aggregated workers by the share of each kind of work.
Waiting for prefill is that of a queue at the resulting utilisation, in both modes.
"""
