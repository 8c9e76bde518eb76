// Package archtest holds no code, only tests: the rules of architecture and style that a machine can check. Each rule
// says why it is there, and each check has a test that sees it fail.
package archtest
