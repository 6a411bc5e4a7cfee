//go:build !unix && !windows

package ptproc

import "time"

// processorTime is not known, and the program seems to rest.
func processorTime() time.Duration { return 0 }
