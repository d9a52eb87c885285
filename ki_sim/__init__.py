"""A mobile bimanual robot in MuJoCo: scenes, tasks with language, a scripted expert, recordings and questions."""
