"""mmcore inside other systems; each module needs the package it is named after."""
