"""What an answer is worth: judges score safety and helpfulness, a formula joins the two."""
