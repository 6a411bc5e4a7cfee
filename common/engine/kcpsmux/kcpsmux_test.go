package kcpsmux

import (
	"testing"

	"turbotunnel/common/engine/enginetest"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }
