//go:build unix

package main

import "syscall"

// descriptorLimit is how many descriptors the process may have. Go has raised
// the soft limit to the hard one before main (package os).
func descriptorLimit() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return uint64(limit.Cur) // signed on some systems, where infinity is the largest
}
