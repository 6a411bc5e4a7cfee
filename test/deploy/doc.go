// Package deploy tests the guides in doc/deploy-*.md: the configuration files
// that they print are run with real nginx, real haproxy and both programs.
package deploy
