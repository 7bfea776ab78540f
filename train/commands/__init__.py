"""The commands of ``python -m train``. Each imports heavy modules only when it runs."""
