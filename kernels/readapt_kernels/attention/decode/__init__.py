"""Paged decode attention: one query per sequence, the context split over a fixed grid."""
