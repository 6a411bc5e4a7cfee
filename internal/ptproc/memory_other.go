//go:build !linux

package ptproc

import "math"

// machineMemory is not known.
func machineMemory() int64 { return math.MaxInt64 }
