"""The data gate: schema anomalies and distribution shift stop a run before anything is trained."""
