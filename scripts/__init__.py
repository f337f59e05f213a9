"""The rules' adapters: each module has one `main`, which reads, calls the stage, and writes."""
