"""Teacher text for stage 1: structured reasoning from an endpoint, from a model, and from rules.

Recipes use what comes from rules (`rationales`, `analyses`, `refusals`, `lookalikes`, `framings`).
`collect`, `chats`, `filters` and `instruction` ask a teacher, as stage prepare does.
"""
