"""The scripted expert that demonstrates every task."""
