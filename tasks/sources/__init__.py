"""Sources of the dataset: folders, archives, web servers, Kaggle, S3, and synthetic phantoms."""
