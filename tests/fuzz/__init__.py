"""What must hold whatever comes in: properties of geometry and masks, and files with their bytes mutated."""
