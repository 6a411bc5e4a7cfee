//go:build !unix

package ptproc

import "time"

// processorTime is not known: the program seems to rest.
func processorTime() time.Duration { return 0 }
