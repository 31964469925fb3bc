package command

import (
	"shop.example/dev/controls"
	"shop.example/dev/local"
)

// addDemoFeatures adds the features of --demo to a shop. To remove one, delete its folder, and its line and import here;
// `make removable` does that on a copy of the tree and builds it.
func addDemoFeatures(cfg *local.Config) {
	controls.Add(cfg)
}
