"""What FuxiCTR gets wrong or leaves open, each corrected in one place."""
