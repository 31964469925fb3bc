package command

import (
	"shop.example/dev/controls"
	"shop.example/dev/local"
)

// addDemoFeatures adds to a shop what --demo is for. To remove a feature, delete its folder, and its line and import here;
// make removable does that to a copy of the tree, and builds it.
func addDemoFeatures(cfg *local.Config) {
	controls.Add(cfg)
}
