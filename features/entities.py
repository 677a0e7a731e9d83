"""The entity that features describe."""

from feast import Entity, ValueType

customer = Entity(
    name="customer",
    join_keys=["customer_id"],
    value_type=ValueType.STRING,
    description="A unified customer; the id is ours and outlives changes of the linkage",
    tags={"personal": "pseudonym"},
)
