"""Files to events and back; knows formats, no physics."""
