"""Who may do what on a secured DDS network (SROS2): grants, the documents that say them, a keystore that signs them."""
