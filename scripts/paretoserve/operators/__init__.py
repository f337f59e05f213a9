"""What one kernel costs on one GPU: look-up, roofline and speed-of-light bound per operator.

Each module states its operator's arithmetic and traffic. `trend` is the sum of the two plus a
launch, a smooth first-order latency that steers interpolation; the bound is their maximum, which
no kernel can beat. All latencies are in ms, all arguments are arrays that broadcast.
"""
