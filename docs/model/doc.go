// Package model holds the protocol's model for the checker spin: see README.md. It has no code but its test.
package model
