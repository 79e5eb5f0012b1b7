"""Write bundles: beside their destination, complete, and moved there at once."""
