// Package arch holds the rules of the module's architecture as tests: which folder may import which, and what no code may do.
package arch
