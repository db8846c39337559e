"""What conversations hold besides text: functions and calls of them."""
