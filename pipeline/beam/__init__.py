"""Where Beam stages run: the section `beam`, its options for each stage, what is checked before."""
