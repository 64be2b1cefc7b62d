"""The choice of sensors, whose cost and length don't grow with the fleet: searched, and cut to the first by name."""

MOST_CHOICES = 200

CHOICES_IN_WORDS = f"The list shows the first {MOST_CHOICES} by name. Type a part of a name to find others."

# Grafana puts in what is typed and a percent sign, and the percent sign alone where nothing is.
SENSOR_CHOICES = f"""SELECT name AS __text, id::text AS __value
FROM sensors
WHERE name ILIKE '%$__searchFilter'
ORDER BY name
LIMIT {MOST_CHOICES}"""
