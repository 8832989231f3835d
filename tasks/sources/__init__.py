"""Where the dataset comes from: folders, archives, web servers, Kaggle, S3, or drawn here."""
