"""The studies behind model_cards/RESULTS.md: what is measured, how it is drawn, what it says of earlier claims."""
