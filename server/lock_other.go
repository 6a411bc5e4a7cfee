//go:build !unix || solaris || aix

package main

// lockFolder locks nothing where Go has no flock.
func lockFolder(string) (unlock func(), locked bool) { return func() {}, false }
