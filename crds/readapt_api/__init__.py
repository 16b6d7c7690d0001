"""What users write and read, and what the parts of Readapt say to each other.

Imports nothing of ours and no tensor library; the operator and the runtime both build on it.

- ``v1alpha1``   the two resources, ``BaseModel`` and ``LoRAAdapter``
- ``conditions`` every condition type and reason
- ``jobs``       what a Job is given and what it must leave
- ``artifacts``  what lies in the store
- ``serving``    the desired set of a serving pod and its administration
- ``bounds``     where the numbers that users set may lie; ``memory``: amounts of it
- ``digest``     how content gets its name
"""
