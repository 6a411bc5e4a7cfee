//go:build !linux

package ptproc

// RelaxTimers does nothing where the kernel knows no timer slack.
func RelaxTimers() {}
