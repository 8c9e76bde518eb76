package main

// revokedCode is the SQLSTATE that the sessions of a person who was revoked must be told.
const revokedCode = "28000"
